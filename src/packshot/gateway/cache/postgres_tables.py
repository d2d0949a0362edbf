"""The schema of `packshot.gateway.cache.postgres_store`: tables, and one function for each change.

A function locks the one row of ``total`` before anything else, which makes changes one after the
other, numbers purges in the order in which they are seen, and leaves no two in each other's way.
A later version of packshot that needs other tables has a schema of another name.
"""

from __future__ import annotations

__all__ = ["AT_ONCE", "LONGEST_LOG", "SCHEMA", "SET_UP", "SET_UP_LOCK", "table_of"]

SCHEMA = "packshot_cache_1"

SET_UP_LOCK = 0x7061636C
"""Advisory lock ("pacl") that lets one process at a time make tables."""

AT_ONCE = 500
"""Entries that one statement throws away, so that others come to their turn."""

LONGEST_LOG = 10_000
"""Purges that are remembered for replicas that have not heard of them."""

MOST_INDEXED = 4000
"""Numbers of a halfvec that pgvector's index takes; longer ones are all compared."""


def table_of(model: int) -> str:
    """Return the name of a model's table, from its number."""
    return f"vectors_{int(model)}"


SET_UP = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
CREATE TABLE IF NOT EXISTS entries (
  key text PRIMARY KEY, sets text[] NOT NULL, until bigint NOT NULL,
  rank double precision NOT NULL, worth double precision NOT NULL,
  size bigint NOT NULL, value bytea NOT NULL);
CREATE INDEX IF NOT EXISTS entries_by_rank ON entries (rank);
CREATE INDEX IF NOT EXISTS entries_by_end ON entries (until);
CREATE INDEX IF NOT EXISTS entries_by_set ON entries USING gin (sets);
CREATE TABLE IF NOT EXISTS models (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL, dimension bigint NOT NULL, UNIQUE (name, dimension));
CREATE TABLE IF NOT EXISTS total (
  number bigint NOT NULL, size bigint NOT NULL, floor double precision NOT NULL,
  purged bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO total SELECT 0, 0, 0, 0 WHERE NOT EXISTS (SELECT FROM total);

CREATE OR REPLACE FUNCTION count_in() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE total SET number = number + (SELECT count(*) FROM news),
    size = size + (SELECT coalesce(sum(n.size), 0) FROM news n);
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION count_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE total SET number = number - (SELECT count(*) FROM olds),
    size = size - (SELECT coalesce(sum(o.size), 0) FROM olds o);
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER entry_in AFTER INSERT ON entries REFERENCING NEW TABLE AS news
  FOR EACH STATEMENT EXECUTE FUNCTION count_in();
CREATE OR REPLACE TRIGGER entry_out AFTER DELETE ON entries REFERENCING OLD TABLE AS olds
  FOR EACH STATEMENT EXECUTE FUNCTION count_out();

CREATE OR REPLACE FUNCTION put(
  new_key text, new_sets text[], new_until bigint, new_worth double precision, new_size bigint,
  new_value bytea, most bigint, heard bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE held bigint; low double precision; BEGIN
  PERFORM FROM total FOR UPDATE;
  DELETE FROM entries e WHERE e.key = new_key;
  IF new_size > most OR heard >= 0 AND EXISTS (
    SELECT FROM purges p WHERE p.number > heard AND (p.by = 'all'
      OR p.by = 'key' AND p.value = new_key OR p.by || ':' || p.value = ANY (new_sets))
  ) THEN RETURN false; END IF;
  LOOP
    SELECT t.size, t.floor INTO held, low FROM total t;
    EXIT WHEN held + new_size <= most;
    DELETE FROM entries WHERE key = (SELECT e.key FROM entries e ORDER BY e.rank LIMIT 1)
      RETURNING rank INTO low;
    EXIT WHEN NOT FOUND;
    UPDATE total SET floor = low;
  END LOOP;
  INSERT INTO entries VALUES
    (new_key, new_sets, new_until, low + new_worth, new_worth, new_size, new_value);
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION drop_some(what text, which text, most bigint) RETURNS bigint
LANGUAGE plpgsql AS $$ DECLARE keys text[]; gone bigint; BEGIN
  SELECT number INTO gone FROM total FOR UPDATE;
  IF what = 'all' THEN
    TRUNCATE entries CASCADE;
    UPDATE total SET number = 0, size = 0;
    RETURN gone;
  ELSIF what = 'key' THEN
    keys := ARRAY[which];
  ELSIF what = 'end' THEN
    keys := ARRAY(SELECT key FROM entries WHERE until <= which::bigint LIMIT most);
  ELSE
    keys := ARRAY(SELECT key FROM entries WHERE sets @> ARRAY[what || ':' || which] LIMIT most);
  END IF;
  DELETE FROM entries WHERE key = ANY (keys);
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN gone;
END $$;

CREATE OR REPLACE FUNCTION note(what text, which text, longest bigint) RETURNS bigint
LANGUAGE plpgsql AS $$ DECLARE last bigint; BEGIN
  PERFORM set_config('synchronous_commit', 'on', true);
  UPDATE total SET purged = purged + 1 RETURNING purged INTO last;
  INSERT INTO purges VALUES (last, what, which);
  DELETE FROM purges WHERE number <= last - longest;
  RETURN last;
END $$;

CREATE OR REPLACE FUNCTION model(new_name text, numbers bigint) RETURNS bigint
LANGUAGE plpgsql AS $$ DECLARE made bigint; BEGIN
  SELECT m.number INTO made FROM models m WHERE m.name = new_name AND m.dimension = numbers;
  IF FOUND THEN RETURN made; END IF;
  PERFORM pg_advisory_xact_lock({SET_UP_LOCK});
  INSERT INTO models (name, dimension) VALUES (new_name, numbers) ON CONFLICT DO NOTHING;
  SELECT m.number INTO made FROM models m WHERE m.name = new_name AND m.dimension = numbers;
  IF to_regclass('vectors_' || made) IS NULL THEN
    EXECUTE format('CREATE TABLE vectors_%s (
      key text PRIMARY KEY REFERENCES entries ON DELETE CASCADE, partition text NOT NULL,
      text bytea NOT NULL, until bigint NOT NULL, vector halfvec(%s) NOT NULL)', made, numbers);
    EXECUTE format('CREATE INDEX ON vectors_%s (partition)', made);
    IF numbers <= {MOST_INDEXED} THEN
      EXECUTE format('CREATE INDEX ON vectors_%s USING hnsw (vector halfvec_cosine_ops)', made);
    END IF;
  END IF;
  RETURN made;
END $$;

CREATE TABLE IF NOT EXISTS purges (
  number bigint PRIMARY KEY, by text NOT NULL, value text NOT NULL)
"""  # noqa: S608 - names and numbers of ours
"""The last table says that all is there. A rank is that of `packshot.gateway.cache.store.rank`."""
