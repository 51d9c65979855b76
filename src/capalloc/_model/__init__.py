"""Model and data, checked: what every method starts from."""
