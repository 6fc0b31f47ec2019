"""The one training loop and what it rests on."""
