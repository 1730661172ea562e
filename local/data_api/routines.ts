import { z } from "zod";
import type { Pool } from "../postgres/database.ts";

const parameterSchema = z.object({ name: z.string(), type: z.string(), required: z.boolean() });

const routineSchema = z.object({
  name: z.string(),
  /** Input parameters in their order; an unnamed one has the name "". */
  parameters: z.array(parameterSchema),
  returns_set: z.boolean(),
  /** A row rather than a single value. */
  returns_rows: z.boolean(),
  returns_void: z.boolean(),
  /** The function's own `statement_timeout`, which must be set before its statement starts to count. */
  statement_timeout: z.string().nullable(),
  description: z.string(),
});

/** A function of schema public, as the RPC endpoint needs to know it. */
export type Routine = z.infer<typeof routineSchema>;

/** Which functions there are, kept until something changes. */
export type RoutineCache = {
  /** The functions of that name that a call with these argument names fits. */
  find(name: string, argumentNames: readonly string[]): Promise<Routine[]>;
  clear(): void;
};

/** Makes a cache that reads the catalogue when it is asked for a function that it does not know. */
export function createRoutineCache(sql: Pool): RoutineCache {
  const byName = new Map<string, Routine[]>();
  const lookUp = async (name: string) => {
    const found = await loadRoutines(sql, name);
    if (found.length > 0) byName.set(name, found);
    return found;
  };
  return {
    find: async (name, argumentNames) => {
      const known = byName.get(name)?.filter((routine) => accepts(routine, argumentNames)) ?? [];
      if (known.length > 0) return known;
      return (await lookUp(name)).filter((routine) => accepts(routine, argumentNames));
    },
    clear: () => byName.clear(),
  };
}

/** Whether the routine takes the whole request body as its one unnamed parameter. */
export function takesWholeBody({ parameters: [first, ...others] }: Routine): boolean {
  return first !== undefined && others.length === 0 && first.name === "" && /^jsonb?$/.test(first.type);
}

function accepts(routine: Routine, argumentNames: readonly string[]): boolean {
  if (takesWholeBody(routine)) return true;
  const names = new Set(routine.parameters.map(({ name }) => name));
  return argumentNames.every((name) => names.has(name)) &&
    routine.parameters.every(({ name, required }) => !required || argumentNames.includes(name));
}

async function loadRoutines(sql: Pool, name: string): Promise<Routine[]> {
  const { rows } = await sql.query(
    `select
      p.proname as name,
      p.proretset as returns_set,
      p.prorettype = 'void'::regtype as returns_void,
      t.typtype = 'c' or coalesce(p.proargmodes && '{o,b,t}', false) as returns_rows,
      (
        select split_part(setting, '=', 2)
        from unnest(p.proconfig) as setting
        where starts_with(setting, 'statement_timeout=')
      ) as statement_timeout,
      p.proname || '(' || pg_get_function_arguments(p.oid) || ')' as description,
      coalesce((
        select jsonb_agg(
          jsonb_build_object(
            'name', coalesce(p.proargnames[place], ''),
            'type', format_type(type_oid, null),
            'required', position <= p.pronargs - p.pronargdefaults
          )
          order by position
        )
        from (
          select type_oid, place, row_number() over (order by place) as position
          from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]))
            with ordinality as argument (type_oid, place)
          where coalesce(p.proargmodes[place], 'i') in ('i', 'b', 'v')
        ) as inputs
      ), '[]') as parameters
    from pg_catalog.pg_proc p
    join pg_catalog.pg_type t on t.oid = p.prorettype
    where p.pronamespace = 'public'::regnamespace and p.prokind = 'f' and p.proname = $1
      and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)`,
    [name],
  );
  return z.array(routineSchema).parse(rows);
}
