"""What a run is called and logs, in whatever its user watches."""
