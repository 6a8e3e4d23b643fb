"""What `throughput.py` measures, one file a subject."""
