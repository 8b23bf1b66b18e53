"""The `acemath` command.

`app` gathers subcommands: `solve` and `keys` are here and speak HTTP; every other one is an entry point of the group
`acemath.commands` in the distribution that it belongs to, so that the command never imports a service.
"""
