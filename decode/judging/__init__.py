"""From a trained decoder to predictions, figures and their statistics."""
