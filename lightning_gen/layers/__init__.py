"""Single layers and parametrizations."""
