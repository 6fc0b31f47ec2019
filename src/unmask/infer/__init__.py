"""The one way in which inference runs."""
