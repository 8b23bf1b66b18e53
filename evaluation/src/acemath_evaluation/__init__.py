"""Benchmarks on a running stack, and on pools of labelled candidates.

`run` samples candidates through the gateway into a resumable file (`draws`, `sampling`); `report` grades them
(`grading`), computes every metric on the same draws (`metrics`, `curves`, `intervals`) and writes it down (`report`).
`pool` scores given candidates with the reward service (`pools`). Nothing here loads a model.
"""
