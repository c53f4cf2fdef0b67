"""One server of several engines: routing, replicas, Ray Serve."""
