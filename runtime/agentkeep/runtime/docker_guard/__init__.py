"""The filtering proxy before the Docker socket: lets the docker driver's calls pass, on its own containers only."""
