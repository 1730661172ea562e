/** The first page: the verdict, the open run, what is wrong, and what the days before say. */
import type { FC } from "hono/jsx";
import type { Report } from "../../supabase/functions/image-sync/contract.ts";
import type { Details } from "../looks.ts";
import { ExpiryChart, GrowthChart, NightsChart } from "../parts/charts.tsx";
import { Findings } from "../parts/findings.tsx";
import { LiveRun } from "../parts/live_run.tsx";
import { Coverage, Verdict } from "../parts/verdict.tsx";
import type { View } from "../view.ts";

/** All of the overview. */
export const Overview: FC<{ view: View; report: Report; details: Details }> = ({ view, report, details }) => (
  <>
    <Verdict view={view} report={report} />
    <LiveRun view={view} run={report.open_run} />
    <Findings view={view} report={report} />
    <Coverage view={view} report={report} />
    <div class="columns">
      <ExpiryChart view={view} expiry={details.expiry} />
      <NightsChart view={view} history={details.history} />
    </div>
    <GrowthChart history={details.history} />
  </>
);
