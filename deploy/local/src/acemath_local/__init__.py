"""The whole stack on one machine, without root.

    preflight ─► install ─► run ─► supervision (supervisord) ─► redis, reward, policy, gateway
                             │
                             └─► readiness, logs, the sample problem (`acemath solve`)

`settings`, `preflight`, `console` and `install` use the standard library only: they run before anything is installed.
"""
