"""The process driver (`ProcessDriver` in `.driver`)."""
