//! The report of a grid: what was asked, what was found, how sure it is, and what has not been run.

use super::headline::{DIGITS, accuracy_gain, advantage, headline, loss};
use super::plot;
use da_moe_train::evaluate::{Comparison, Estimate, Group, Outcome, Outcomes, Plan};
use da_moe_train::file_name;
use std::fmt::Write;
use std::path::Path;

/// A page and its pictures.
pub(super) struct Report {
    /// Its first lines.
    pub headline: String,
    /// Markdown.
    pub text: String,
    /// File names and contents.
    pub pictures: Vec<(String, String)>,
    /// Name of the folder that the pictures are in.
    folder: String,
}

// Writing to a string cannot fail, so the results of `writeln!` below carry no news.

impl Report {
    pub fn new(plan: &Plan, outcomes: &Outcomes, beside: &Path) -> Self {
        let folder = beside.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let headline = headline(plan, outcomes);
        let mut report = Self { headline, text: String::new(), pictures: Vec::new(), folder };
        let _ = writeln!(report.text, "# Does dynamic allocation pay?\n\n{}\n", report.headline);
        report.text += PREFACE;
        for group in &plan.groups {
            report.group(plan, group, outcomes);
        }
        report
    }

    fn group(&mut self, plan: &Plan, group: &Group, outcomes: &Outcomes) {
        let _ = writeln!(self.text, "\n## {}\n\n{}", group.name, setting(plan, group, outcomes));
        self.missing(group, outcomes);
        self.headroom(group, outcomes);
        self.comparisons(group, outcomes);
        self.variants(group, outcomes);
        self.fine_tuning(group, outcomes);
        self.router(group, outcomes);
        self.tokens(group, outcomes);
    }

    fn missing(&mut self, group: &Group, outcomes: &Outcomes) {
        let wanted = group.seeds.len();
        let runs = |name: &str| outcomes.by_seed(group, name).len();
        let short: Vec<String> = group
            .names()
            .filter(|name| runs(name) < wanted)
            .map(|name| format!("{name} ({} of {wanted})", runs(name)))
            .collect();
        if !short.is_empty() {
            let _ = writeln!(self.text, "\n**Not all runs of the plan have been made yet**: {}.", short.join(", "));
        }
    }

    fn picture(&mut self, group: &Group, kind: &str, picture: String) {
        let file = format!("{}-{kind}.svg", file_name(&group.name));
        let _ = writeln!(self.text, "\n![{kind}]({}/{file})", self.folder);
        self.pictures.push((file, picture));
    }

    fn headroom(&mut self, group: &Group, outcomes: &Outcomes) {
        let estimated = |name: &String| Some((name.clone(), outcomes.estimate(group, name, loss)?));
        let named: Vec<(String, Estimate)> = group.headroom.iter().filter_map(estimated).collect();
        if named.len() < 2 {
            return;
        }
        self.text += "\n### Headroom: what more experts for every token bring\n";
        self.picture(group, "headroom", plot::points("Experts for every token", "held-out loss, nats a token", &named));
        let curve = |name: &String| Some((name.clone(), mean_curve(group, name, outcomes)?));
        let curves: Vec<_> = group.headroom.iter().filter_map(curve).collect();
        self.picture(
            group,
            "curves",
            plot::curves("Held-out loss in training", "nats a token, mean over seeds", &curves),
        );
    }

    fn comparisons(&mut self, group: &Group, outcomes: &Outcomes) {
        let advantages: Vec<(&Comparison, Estimate)> =
            group.comparisons.iter().filter_map(|asked| Some((asked, advantage(group, asked, outcomes)?))).collect();
        if advantages.is_empty() {
            return;
        }
        self.text += "\n### The questions\n\nAdvantage: how much lower the held-out loss is, in nats a token, paired by seed; with \
                      its standard error and 95% interval (Student's t).\n\n";
        self.text += "| question | of | against | advantage | 95% interval | pairs | verdict |\n|---|---|---|---:|---|---:|---|\n";
        for (asked, advantage) in &advantages {
            let _ = writeln!(
                self.text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                asked.question,
                asked.of,
                asked.against,
                signed(advantage),
                advantage.interval().map_or("–".into(), |[low, high]| format!("{low:+.DIGITS$} … {high:+.DIGITS$}")),
                advantage.count,
                verdict(advantage)
            );
        }
        self.text += "\nThe questions above the first heading are the ones that the plan puts first. The others are looked at beside them: of \
                      twenty 95% intervals, one leaves out 0 by chance.\n";
        let named: Vec<_> = advantages
            .into_iter()
            .map(|(asked, advantage)| (format!("{} against {}", asked.of, asked.against), advantage))
            .collect();
        let axis = "advantage, nats a token: right of 0 the first is better";
        self.picture(group, "comparisons", plot::intervals("Advantages with 95% intervals", axis, &named));
    }

    fn variants(&mut self, group: &Group, outcomes: &Outcomes) {
        self.text += "\n### Every variant\n\n\
            | variant | held-out loss | seed s.d. | accuracy | mean k | k masked / others | rows a token | dropped | load evenness | processor s |\n\
            |---|---:|---:|---:|---:|---|---:|---:|---:|---:|\n";
        for name in group.names() {
            let of = |figure: fn(&Outcome) -> f64| outcomes.estimate(group, name, figure);
            let Some(held_out) = of(loss) else { continue };
            let mean = |figure: fn(&Outcome) -> f64, digits: usize| {
                of(figure).map_or_else(String::new, |estimate| format!("{:.digits$}", estimate.mean))
            };
            let _ = writeln!(
                self.text,
                "| {name} | {:.DIGITS$} ± {:.DIGITS$} | {:.DIGITS$} | {} | {} | {} | {} | {} | {} | {} |",
                held_out.mean,
                held_out.error,
                held_out.deviation,
                mean(|outcome| outcome.held_out.accuracy, 4),
                mean(|outcome| outcome.held_out.allocated.mean_k, 3),
                sides(group, name, outcomes),
                mean(|outcome| outcome.training_rows, 3),
                mean(|outcome| outcome.held_out.allocated.dropped_per_token, 3),
                mean(|outcome| outcome.held_out.allocated.load_evenness, 3),
                known(group, name, outcomes, |outcome| outcome.processor_seconds, 0),
            );
        }
    }

    fn fine_tuning(&mut self, group: &Group, outcomes: &Outcomes) {
        let Some(tuning) = &group.fine_tuning else { return };
        let _ = writeln!(
            self.text,
            "\n### Fine-tuning\n\nTest accuracy after {} steps of {} texts on each set (GLUE-like, not GLUE), from the pre-trained \
             weights of each run; mean ± standard error over seeds.\n",
            tuning.steps, tuning.batch
        );
        let _ = writeln!(
            self.text,
            "| variant | {} |\n|---|{}",
            tuning.sets.join(" | "),
            "---:|".repeat(tuning.sets.len())
        );
        for name in group.names() {
            let cells: Vec<String> = tuning
                .sets
                .iter()
                .map(|set| {
                    let accuracy = |outcome: &Outcome| outcome.accuracy.get(set).copied().unwrap_or(f64::NAN);
                    let estimate = outcomes.estimate(group, name, accuracy);
                    estimate.map_or_else(String::new, |e| format!("{:.4} ± {:.4}", e.mean, e.error))
                })
                .collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(self.text, "| {name} | {} |", cells.join(" | "));
            }
        }
        self.accuracy_differences(group, outcomes, &tuning.sets);
    }

    fn accuracy_differences(&mut self, group: &Group, outcomes: &Outcomes, sets: &[String]) {
        self.text += "\n| question | set | gain in accuracy | 95% interval | verdict |\n|---|---|---:|---|---|\n";
        for asked in &group.comparisons {
            for set in sets {
                let gain = accuracy_gain(group, asked, set, outcomes);
                if let Some((gain, [low, high])) = gain.and_then(|gain| Some((gain, gain.interval()?))) {
                    let _ = writeln!(
                        self.text,
                        "| {} against {} | {set} | {} | {low:+.DIGITS$} … {high:+.DIGITS$} | {} |",
                        asked.of,
                        asked.against,
                        signed(&gain),
                        verdict(&gain)
                    );
                }
            }
        }
    }

    /// What each normalisation of weights leaves of the router's gradient.
    fn router(&mut self, group: &Group, outcomes: &Outcomes) {
        self.text += "\n### The router's gradient by number of experts\n\nRoot mean square over tokens of the norm of the loss's \
                      gradient in the router's logits, in the last steps, times 10⁶; mean over seeds.\n\n";
        let most = group.model.experts;
        let ks: Vec<usize> = (1..=most.min(4)).collect();
        let titles: Vec<String> = ks.iter().map(|k| format!("k = {k}")).collect();
        let _ = writeln!(self.text, "| variant | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(ks.len()));
        for name in group.names() {
            let cell = |k: &usize| {
                let outcomes = outcomes.by_seed(group, name);
                let norms: Vec<f64> =
                    outcomes.values().filter_map(|outcome| outcome.router_gradient_by_k.get(k).copied()).collect();
                Estimate::of(&norms).map_or_else(String::new, |norm| format!("{:.1}", 1e6 * norm.mean))
            };
            let cells: Vec<String> = ks.iter().map(cell).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(self.text, "| {name} | {} |", cells.join(" | "));
            }
        }
    }

    fn tokens(&mut self, group: &Group, outcomes: &Outcomes) {
        self.text += "\n### Which tokens got experts\n\nUnmasked tokens of held-out text by their mean number of experts, for the first \
                      seed: those with the most, then those with the fewest.\n\n| variant | most | fewest |\n|---|---|---|\n";
        for name in group.names() {
            let outcomes = outcomes.by_seed(group, name);
            let Some(outcome) = outcomes.values().next() else { continue };
            let tokens = &outcome.experts_by_token;
            let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { continue };
            // Where every token gets about as many there is nothing to show.
            if first.mean_k - last.mean_k < 0.2 {
                continue;
            }
            let list = |tokens: &[da_moe_train::evaluate::TokenExperts]| {
                let shown = tokens.iter().map(|token| format!("`{}` {:.2}", cell_text(&token.token), token.mean_k));
                shown.collect::<Vec<_>>().join(", ")
            };
            let half = tokens.len() / 2;
            let _ = writeln!(self.text, "| {name} | {} | {} |", list(&tokens[..half]), list(&tokens[half..]));
        }
    }
}

const PREFACE: &str = "Written by `da-moe evaluate`; the plan and every outcome are beside it, so anyone can add seeds or variants.\n\n\
    Runs of one seed share their first weights, data and masks, so differences are taken in pairs. With *groups* in a variant's \
    `rank`, masked tokens are ranked among masked ones and the others among the others, so that no allocation gains by finding the \
    masks. Numbers of experts that depend on a batch in training are decided with frozen thresholds on held-out text.\n";

fn setting(plan: &Plan, group: &Group, outcomes: &Outcomes) -> String {
    let model = &group.model;
    let parameters =
        group.names().find_map(|name| outcomes.by_seed(group, name).into_values().next().map(|o| o.parameters));
    let tokens = group.schedule.steps * (group.schedule.batch * model.length) as u64;
    format!(
        "{} Transformer: D {}, {} layers, {} heads, sequences of {}, {} experts of width {} ({:?}), {} parameters, a byte-pair vocabulary \
         of {}. Each run sees {:.2} million tokens in {} steps; seeds {:?}.",
        if model.causal { "A causal" } else { "A bidirectional" },
        model.width,
        model.layers,
        model.heads,
        model.length,
        model.experts,
        model.expert_width,
        model.activation,
        parameters.map_or_else(|| "?".into(), |count| count.to_string()),
        plan.vocabulary,
        tokens as f64 / 1e6,
        group.schedule.steps,
        group.seeds
    )
}

fn signed(estimate: &Estimate) -> String {
    format!("{:+.DIGITS$} ± {:.DIGITS$}", estimate.mean, estimate.error)
}

fn verdict(advantage: &Estimate) -> &'static str {
    match (advantage.interval(), advantage.is_clear(), advantage.mean > 0.0) {
        (None, ..) => "one pair",
        (_, false, _) => "inside the noise",
        (_, true, true) => "**better**",
        (_, true, false) => "**worse**",
    }
}

fn sides(group: &Group, name: &str, outcomes: &Outcomes) -> String {
    let mean = |side| known(group, name, outcomes, side, 3);
    let masked = mean(|outcome| outcome.held_out.allocated.mean_k_masked);
    format!("{masked} / {}", mean(|outcome| outcome.held_out.allocated.mean_k_unmasked))
}

/// The mean of a figure that not every outcome has.
fn known(group: &Group, name: &str, outcomes: &Outcomes, figure: fn(&Outcome) -> Option<f64>, digits: usize) -> String {
    let values: Vec<f64> = outcomes.by_seed(group, name).into_values().filter_map(figure).collect();
    Estimate::of(&values).map_or_else(|| "–".into(), |estimate| format!("{:.digits$}", estimate.mean))
}

fn mean_curve(group: &Group, name: &str, outcomes: &Outcomes) -> Option<Vec<(f64, f64)>> {
    let outcomes = outcomes.by_seed(group, name);
    let first = outcomes.values().next()?;
    let at = |index: usize, step: u64| {
        let losses: Vec<f64> = outcomes.values().filter_map(|outcome| Some(outcome.curve.get(index)?.1)).collect();
        Some((step as f64, Estimate::of(&losses)?.mean))
    };
    first.curve.iter().enumerate().map(|(index, (step, _))| at(index, *step)).collect()
}

/// Text that breaks neither a table nor code.
fn cell_text(text: &str) -> String {
    text.replace('|', "∣").replace('`', "ʼ").replace('\n', "⏎")
}
