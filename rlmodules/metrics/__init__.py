"""What every metric is, whether a run's metrics look healthy, and the page that says so."""
