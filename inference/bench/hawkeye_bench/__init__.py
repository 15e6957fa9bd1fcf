"""Times the service beside a Python pipeline of the same models on the same screenshots: `make bench-inference`."""
