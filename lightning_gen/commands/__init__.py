"""The commands behind `lightning_gen.cli`, one file each, imported when called for."""
