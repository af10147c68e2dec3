"""Speed of training, measured side by side."""
