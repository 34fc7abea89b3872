"""Types of requests and responses, generated from the service models."""
