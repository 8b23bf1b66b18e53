"""What a gateway adds to an answer: ours beside other Python gateways. See README.md."""
