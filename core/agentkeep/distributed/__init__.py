"""The distributed mode: each plane a service of its own. Here are the five composition roots, and what they share."""
