"""The report on a run: one HTML file that opens offline."""
