"""Results as other systems take them in: one module a format, all from the same records."""
