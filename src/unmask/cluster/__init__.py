"""Work spread over many machines by Ray."""
