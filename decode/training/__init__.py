"""What happens between a config and a finished run."""
