//! The first lines of a report: what the plan asks first, and the answers.

use da_moe_train::evaluate::{Comparison, Estimate, Group, Outcome, Outcomes, Plan};

/// Shares of a nat that a figure is given to.
pub(super) const DIGITS: usize = 4;

/// One line of Markdown for each headline question of the plan.
pub(super) fn headline(plan: &Plan, outcomes: &Outcomes) -> String {
    let mut lines = Vec::new();
    for group in &plan.groups {
        for asked in group.comparisons.iter().filter(|asked| asked.headline) {
            lines.push(match advantage(group, asked, outcomes) {
                Some(advantage) => {
                    format!("- {}{}", sentence(group, asked, &advantage), fine_tuning(group, asked, outcomes))
                }
                None => format!("- {} ({}): not run yet.", asked.question, group.name),
            });
        }
    }
    if lines.is_empty() {
        return "The plan states no headline question.".into();
    }
    let found = |group: &Group| group.names().map(|name| outcomes.by_seed(group, name).len()).sum::<usize>();
    let (found, planned) = (plan.groups.iter().map(found).sum::<usize>(), plan.jobs().len());
    if found < planned {
        lines.push(format!("\nSo far: {found} of {planned} runs have been made."));
    }
    lines.join("\n")
}

fn sentence(group: &Group, asked: &Comparison, advantage: &Estimate) -> String {
    let question = format!("{} ({}, pairs: {})", asked.question, group.name, advantage.count);
    match advantage.interval() {
        None => format!("{question}: one pair says nothing yet."),
        Some([low, high]) if advantage.is_clear() => {
            let better = if advantage.mean > 0.0 { "lowers" } else { "raises" };
            format!(
                "{question}: **{} {better} the held-out loss** by {:.DIGITS$} nats against {} (95% interval {:.DIGITS$} to {:.DIGITS$}).",
                asked.of,
                advantage.mean.abs(),
                asked.against,
                low.abs().min(high.abs()),
                low.abs().max(high.abs())
            )
        }
        Some([low, high]) => format!(
            "{question}: **no effect that can be told from noise**; {} is neither better than {} by more than {:.DIGITS$} nats nor worse by \
             more than {:.DIGITS$} (95%).",
            asked.of,
            asked.against,
            high.max(0.0),
            (-low).max(0.0)
        ),
    }
}

/// What the same pairs say of accuracy after fine-tuning; empty where nothing was fine-tuned.
fn fine_tuning(group: &Group, asked: &Comparison, outcomes: &Outcomes) -> String {
    let sets = group.fine_tuning.iter().flat_map(|tuning| &tuning.sets);
    let gains = sets.filter_map(|set| {
        let gain = accuracy_gain(group, asked, set, outcomes)?;
        let [low, high] = gain.interval()?;
        Some(format!("{set} {:+.DIGITS$} ({low:+.DIGITS$} to {high:+.DIGITS$})", gain.mean))
    });
    let gains = gains.collect::<Vec<_>>().join(", ");
    if gains.is_empty() { gains } else { format!(" Accuracy after fine-tuning: {gains}.") }
}

pub(super) fn loss(outcome: &Outcome) -> f64 {
    outcome.held_out.loss
}

/// How much lower the held-out loss is, in pairs.
pub(super) fn advantage(group: &Group, asked: &Comparison, outcomes: &Outcomes) -> Option<Estimate> {
    // The other way round: a lower loss is an advantage.
    outcomes.difference(group, [&asked.against, &asked.of], |outcome| Some(loss(outcome)))
}

/// How much higher the accuracy on this set is after fine-tuning, in pairs.
pub(super) fn accuracy_gain(group: &Group, asked: &Comparison, set: &str, outcomes: &Outcomes) -> Option<Estimate> {
    outcomes.difference(group, [&asked.of, &asked.against], |outcome| outcome.accuracy.get(set).copied())
}
