"""What goes in: text, its cleaning, tokens, masks and packed batches."""
