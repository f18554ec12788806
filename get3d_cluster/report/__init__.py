"""What happened to a run, as one HTML file. Reads files only: no torch, no network, no scheduler."""
