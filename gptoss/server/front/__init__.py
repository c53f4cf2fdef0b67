"""One server for several engines: routing, replicas, Ray Serve."""
