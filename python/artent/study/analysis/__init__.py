"""What the numbers of a study say: fits, residuals, and tests with the error they are allowed. Numbers, no words."""
