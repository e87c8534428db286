"""A schema that a command makes and drops; another owner's schema of the same name is left alone."""

from __future__ import annotations

__all__ = ["made_anew"]


def made_anew(schema: str, maker: str) -> str:
    """A script that drops the schema if an earlier run left it, and makes it empty.

    A schema of that name without the maker's mark belongs to another owner: the script fails with ``LG004``.

    Args:
        schema: its name, one of ours that needs no quotes.
        maker: the command that marks it, such as ``lockguard fence race``.
    """
    mark = f"made by {maker}"
    return f"""
do $$
begin
  if exists (select from pg_namespace where nspname = '{schema}'
              and obj_description(oid, 'pg_namespace') is distinct from '{mark}') then
    raise exception using errcode = 'LG004', message =
      'there is a schema {schema} in this database that `{maker}` has not made: rename it or go elsewhere';
  end if;
end $$;
drop schema if exists {schema} cascade;
create schema {schema};
comment on schema {schema} is '{mark}';
"""  # noqa: S608 - ours
