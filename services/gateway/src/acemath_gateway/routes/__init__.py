"""The gateway's HTTP face: reads requests, writes answers, and decides nothing."""
