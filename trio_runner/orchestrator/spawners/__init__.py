"""What starts runners: child processes, units of systemd, Jobs of Kubernetes."""
