"""What the commands share: cases, checks, timing, suites, peers, probes, reports."""
