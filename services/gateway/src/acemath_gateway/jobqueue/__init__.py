"""Jobs: thousands of problems handed over at once, worked on by whichever gateway has room, told of when they are done.

intake ──► store (Redis) ──► worker ──► store ──► routes, notices
a body to    lines, results,   any gateway's;       status, results, events,
lines        who has which     as priority batch    the webhook at the end
"""
