"""What is remembered, measured: sample -> method -> scorer -> report."""
