"""Models: stock transformers classes, with unpadded attention and a head only at the labels."""
