"""What a key opens: `Depends(requires(KeyScope.JOBS))` on a route, or in its signature for the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from acemath_core.admin import KeyScope
from acemath_core.errors import Forbidden, Unauthenticated
from acemath_web.auth import Caller, identity_of
from acemath_web.context import note_facts

__all__ = ["ADMIN_CALLER", "ANYBODY", "FILE_CALLER", "USER_SCOPES", "KeyScope", "may_solve", "requires"]


USER_SCOPES: frozenset[str] = frozenset({KeyScope.SOLVE, KeyScope.JOBS})
"""What a key of the keys file opens, and what is open to everybody where no key is required."""
FILE_CALLER = Caller("file", USER_SCOPES)
ADMIN_CALLER = Caller("admin-file", frozenset({KeyScope.ADMIN}))
ANYBODY = Caller("anybody", USER_SCOPES)


def requires(scope: KeyScope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that gives the caller, once it is known to have `scope`.

    Where no key is required, who shows none (or an unknown one, as OpenAI's clients must show something) is `ANYBODY`,
    who never has the scope `admin`.

    Raises:
        Unauthenticated: a key is needed, and there is none or nobody knows it.
        Forbidden: (`insufficient_scope`) the key does not have the scope.
        Unavailable: (`keys_unavailable`) the key cannot be looked up now.
    """

    async def caller_with_scope(request: Request) -> Caller:
        identity = identity_of(request.scope)
        if identity.caller is not None:
            return _checked(identity.caller, scope)
        if identity.required or scope not in USER_SCOPES:
            raise identity.refusal or Unauthenticated("no API key; send the header Authorization: Bearer <key>")
        return ANYBODY

    return caller_with_scope


may_solve = requires(KeyScope.SOLVE)
"""The caller of a route that solves."""


def _checked(caller: Caller, scope: KeyScope) -> Caller:
    note_facts(key_id=caller.id)
    if scope not in caller.scopes:
        raise Forbidden(f"this API key lacks the scope {scope.value!r}; ask an administrator for a key that has it")
    return caller
