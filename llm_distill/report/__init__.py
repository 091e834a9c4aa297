"""Numbers -> report.html."""
