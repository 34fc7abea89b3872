"""The docker driver (`DockerDriver` in `.driver`)."""
