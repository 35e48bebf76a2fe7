"""What every room stands on: command lines, log lines, files that are whole, fingerprints."""
