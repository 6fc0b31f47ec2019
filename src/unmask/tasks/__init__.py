"""What a model is put to work at; file name = task name."""
