"""Ways of fine-tuning that artent adds to those it measures."""
