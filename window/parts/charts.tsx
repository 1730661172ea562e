/** Pictures of the past and of what is to come: when URLs die, how the nights went, how the bucket grew. Each with its table. */
import type { FC } from "hono/jsx";
import type { Expiry, History, HistoryDay } from "../../supabase/functions/image-sync/contract.ts";
import { bytes, duration, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { link, type View } from "../view.ts";
import { AsTable, Card, Empty, number, Time } from "./basics.tsx";

const DAY = 86_400_000;
/** The drawing's own units: the page stretches it. */
const HEIGHT = 100;
const STEP = 10;

/** How many URLs die on which day, with now, the limit of renewal and the next run marked. */
export const ExpiryChart: FC<{ view: View; expiry: Expiry }> = ({ view, expiry }) => {
  const { days, measured_at, next_run_at, renew_before_seconds } = expiry;
  if (days.length === 0) {
    return (
      <Card id="expiry" title="When the URLs die">
        <Empty>{measured_at === null ? "Nothing was measured yet." : "There is no URL that works."}</Empty>
      </Card>
    );
  }
  const renewAt = view.now + renew_before_seconds * 1000;
  const first = Math.min(Date.parse(days[0]?.day ?? ""), dayOf(view.now));
  const last =
    Math.max(Date.parse(days.at(-1)?.day ?? ""), dayOf(renewAt), dayOf(Date.parse(next_run_at ?? "") || 0)) +
    DAY;
  const width = Math.round((last - first) / DAY) * STEP;
  const most = Math.max(...days.map(({ urls }) => urls));
  const x = (time: number) => ((time - first) / DAY) * STEP;
  const due = sum(days.filter(({ day }) => Date.parse(day) < renewAt));
  return (
    <Card
      id="expiry"
      title="When the URLs die"
      note={
        <>
          as measured <Time at={measured_at} now={view.now} />
        </>
      }
    >
      <svg
        class="chart"
        viewBox={`0 0 ${width} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`URLs by day of death, ${quantity(days.length, "day")}; ${
          number(due)
        } die before the limit of renewal`}
      >
        <rect class="due" x={x(first)} y={0} width={Math.max(x(renewAt), 0)} height={HEIGHT} />
        {days.map(({ day, urls }) => {
          const tall = Math.max((urls / most) * (HEIGHT - 8), 1);
          return (
            <rect
              class={Date.parse(day) < renewAt ? "bar warning" : "bar"}
              x={x(Date.parse(day)) + 1}
              y={HEIGHT - tall}
              width={STEP - 2}
              height={tall}
            >
              <title>{`${day}: ${quantity(urls, "URL")}`}</title>
            </rect>
          );
        })}
        <Mark class="now" at={x(view.now)} />
        <Mark class="renew" at={x(renewAt)} />
        {next_run_at === null ? null : <Mark class="next" at={x(Date.parse(next_run_at))} />}
      </svg>
      <p class="axis">
        <span>{iso(first)}</span>
        <span>{iso(last - DAY)}</span>
      </p>
      <ul class="legend">
        <li class="now">now</li>
        {next_run_at === null ? null : (
          <li class="next">
            next run, <Time at={next_run_at} now={view.now} />
          </li>
        )}
        <li class="renew">
          renewed if due within {duration(renew_before_seconds)}: {quantity(due, "URL")}
        </li>
      </ul>
      <AsTable
        caption="URLs by day of death"
        head={["Day (GMT)", "URLs"]}
        rows={days.map(({ day, urls }) => [day, number(urls)])}
      />
    </Card>
  );
};

const Mark: FC<{ class: string; at: number }> = ({ class: style, at }) => (
  <line class={`mark ${style}`} x1={at} x2={at} y1={0} y2={HEIGHT} vector-effect="non-scaling-stroke" />
);

/** A day for each of the last ninety: how it went by colour, how long it took by height, a hole where nothing ran. */
export const NightsChart: FC<{ view: View; history: History }> = ({ view, history }) => {
  const all = daysBetween(history);
  const longest = Math.max(...history.days.map(({ seconds }) => seconds ?? 0), 1);
  const held = history.days.filter(({ sync }) => sync !== undefined).length;
  return (
    <Card id="nights" title={`Runs of ${all.length} days`} note={`${quantity(held, "day")} with a sync`}>
      {history.days.length === 0 ? <Empty>No run yet.</Empty> : (
        <>
          <svg
            class="chart strip"
            viewBox={`0 0 ${all.length * STEP} ${HEIGHT}`}
            preserveAspectRatio="none"
            role="img"
            aria-label={`Of ${all.length} days, ${held} had a sync`}
          >
            {all.map(([day, ran], place) => <Night day={day} ran={ran} place={place} longest={longest} />)}
          </svg>
          <p class="axis">
            <span>{history.from}</span>
            <span>{history.to}</span>
          </p>
          <ul class="legend">
            <li class="good">succeeded</li>
            <li class="warning">partial</li>
            <li class="error">failed</li>
            <li class="hole">no run</li>
          </ul>
          <p>
            <a href={link("/runs", { bucket: view.bucket })}>Every run</a>
          </p>
          <AsTable
            caption="Runs by day"
            head={["Day (GMT)", "Sync", "Took", "Inserted", "Signed", "Failed", "Runs"]}
            rows={history.days.toReversed().map((day) => [
              day.day,
              day.sync ?? "none",
              day.seconds === undefined ? "–" : duration(day.seconds),
              number(day.inserted),
              number(day.signed),
              number(day.failed),
              number(Object.values(day.runs).reduce((total, runs) => total + runs, 0)),
            ])}
          />
        </>
      )}
    </Card>
  );
};

const TONES: Readonly<Record<string, string>> = {
  succeeded: "good",
  partial: "warning",
  failed: "error",
  cancelled: "plain",
};

const Night: FC<{ day: string; ran: HistoryDay | undefined; place: number; longest: number }> = (
  { day, ran, place, longest },
) => {
  const outcome = ran?.sync ?? (ran === undefined ? undefined : Object.keys(ran.runs)[0]);
  const tall = outcome === undefined ? HEIGHT - 4 : 24 + 72 * Math.sqrt((ran?.seconds ?? 0) / longest);
  const words = outcome === undefined
    ? `${day}: no run`
    : `${day}: ${outcome}${ran?.seconds === undefined ? "" : ` in ${duration(ran.seconds)}`}`;
  return (
    <rect
      class={outcome === undefined ? "hole" : `bar ${TONES[outcome] ?? "plain"}`}
      x={place * STEP + 1}
      y={HEIGHT - tall}
      width={STEP - 2}
      height={tall}
    >
      <title>{words}</title>
    </rect>
  );
};

const SERIES = [
  ["objects", "Files", number],
  ["bytes", "Size", (value: number) => bytes(value)],
  ["records", "Records", number],
] as const;

/** Files, bytes and records over the same days. */
export const GrowthChart: FC<{ history: History }> = ({ history }) => {
  const measured = history.days.filter(({ objects }) => objects !== undefined);
  if (measured.length < 2) {
    return (
      <Card id="growth" title="Growth">
        <Empty>
          {measured.length === 0
            ? "Nothing was measured yet."
            : "One day is measured; growth shows from the second on."}
        </Empty>
      </Card>
    );
  }
  return (
    <Card id="growth" title="Growth" note={`over ${quantity(measured.length, "measured day")}`}>
      <div class="series">
        {SERIES.map(([key, name, words]) => {
          const values = measured.map((day) => day[key] ?? 0);
          const [oldest = 0, newest = 0] = [values[0], values.at(-1)];
          const change = newest - oldest;
          return (
            <div>
              <h3>{name}</h3>
              <p>
                <strong>{words(newest)}</strong>{" "}
                <span class="dim">
                  {change === 0 ? "unchanged" : `${change > 0 ? "+" : "−"}${words(Math.abs(change))}`}
                </span>
              </p>
              <Line values={values} label={`${name} from ${words(oldest)} to ${words(newest)}`} />
            </div>
          );
        })}
      </div>
      <AsTable
        caption="Growth by day"
        head={["Day (GMT)", ...SERIES.map(([, name]) => name)]}
        rows={measured.toReversed().map((day) => [
          day.day,
          ...SERIES.map(([key, , words]) => words(day[key] ?? 0)),
        ])}
      />
    </Card>
  );
};

const Line: FC<{ values: readonly number[]; label: string }> = ({ values, label }) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = values.map((value, place) => {
    const y = high === low ? HEIGHT / 2 : HEIGHT - 6 - ((value - low) / (high - low)) * (HEIGHT - 12);
    return `${(place * STEP).toFixed(0)},${y.toFixed(1)}`;
  });
  return (
    <svg
      class="chart line"
      viewBox={`0 0 ${(values.length - 1) * STEP} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={label}
    >
      <polyline points={points.join(" ")} vector-effect="non-scaling-stroke" />
    </svg>
  );
};

function daysBetween({ from, to, days }: History): [string, HistoryDay | undefined][] {
  const known = new Map(days.map((day) => [day.day, day]));
  const number = Math.round((Date.parse(to) - Date.parse(from)) / DAY) + 1;
  return Array.from({ length: number }, (_, place) => {
    const day = iso(Date.parse(from) + place * DAY);
    return [day, known.get(day)];
  });
}

function sum(days: Expiry["days"]): number {
  return days.reduce((total, { urls }) => total + urls, 0);
}

function dayOf(time: number): number {
  return Math.floor(time / DAY) * DAY;
}

function iso(time: number): string {
  return new Date(time).toISOString().slice(0, 10);
}
