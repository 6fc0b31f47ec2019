"""The HTTP service: models by name, their requests run together, answers in the shapes of the Hugging Face inference API."""
