"""What of the site is made from the code and the measurements, so that it cannot go stale."""
