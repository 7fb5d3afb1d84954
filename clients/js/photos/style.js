/**
 * The style of the component. Colours and corners are custom properties of the host, which a page may set, as in
 * `photo-queue { --accent: rebeccapurple }`. The page's `color-scheme` decides between light and dark.
 */

const REM = "--photo-queue-rem";

/**
 * Many pages make their rem small (`html { font-size: 62.5% }`). Here the rem is replaced by the font size of the
 * element, which is the person's setting in the browser.
 * @param {string} css
 */
function withOwnRem(css) {
  let size = "1em";
  try {
    CSS.registerProperty({ name: REM, syntax: "<length>", inherits: true, initialValue: "16px" });
  } catch (/** @type {any} */ error) {
    // Another copy of this module has registered it, or the browser cannot.
    if (error.name !== "InvalidModificationError") size = "1rem";
  }
  return `:host { ${REM}: ${size} } ${css.replace(/(-?[\d.]+)rem/g, `calc($1 * var(${REM}))`)}`;
}

export const sheet = new CSSStyleSheet();
sheet.replaceSync(
  withOwnRem(`
:host {
  --ink: light-dark(#18202b, #e7ecf3); --soft: light-dark(#556172, #a3afbf); --line: light-dark(#d9dfe7, #2c3644);
  --paper: light-dark(#ffffff, #171e27); --hollow: light-dark(#eaeef3, #222c38); --field: light-dark(#8a94a3, #667286);
  --accent: light-dark(#1a5fd0, #7fb1ff); --accent-ink: light-dark(#ffffff, #0b1624); --accent-soft: color-mix(in srgb, var(--accent) 12%, var(--paper));
  --good: light-dark(#14713d, #6fd39a); --good-soft: light-dark(#e2f4e9, #143323);
  --warn: light-dark(#8a5300, #f0b95f); --warn-soft: light-dark(#fdf0d9, #3a2a0d);
  --bad: light-dark(#b3261e, #ff9a92); --bad-soft: light-dark(#fce8e6, #43201d);
  --radius: .875rem;
  display: block; scroll-margin-top: 4.5rem; container-type: inline-size; font: medium/1.5 system-ui, sans-serif;
}
:host([hidden]), [hidden] { display: none !important; }
*, *::before, *::after { box-sizing: border-box; }
h2, h3, p, dl, dd, ol, fieldset { min-width: 0; margin: 0; padding: 0; border: 0; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 650; letter-spacing: -.01em; }
h3 { font-size: 1rem; }
button, input, select { min-height: 2.75rem; border: 1px solid var(--line); border-radius: calc(var(--radius) * .7); background: var(--paper); color: inherit; font: inherit; }
button { display: inline-flex; align-items: center; justify-content: center; gap: .5rem; padding: .375rem .875rem; cursor: pointer; touch-action: manipulation; }
button:hover { border-color: var(--accent); }
button:is(:disabled, [aria-disabled=true]) { opacity: .5; cursor: default; }
button.primary { border-color: transparent; background: var(--accent); color: var(--accent-ink); font-weight: 600; }
button.primary:hover { filter: brightness(1.08); }
button.quiet { border-color: transparent; background: none; color: var(--soft); }
button.quiet:hover { background: var(--hollow); color: var(--ink); }
input, select { width: 100%; padding: .375rem .75rem; border-color: var(--field); color: var(--ink); }
label { display: grid; gap: .25rem; color: var(--soft); font-size: .875rem; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
input::selection { background: var(--accent); color: var(--accent-ink); }
.icon { width: 1.25rem; height: 1.25rem; flex: none; }
.soft { color: var(--soft); }
.small { font-size: .875rem; }
.visually-hidden, .hidden-input { position: absolute; width: 1px; height: 1px; margin: -1px; padding: 0; min-height: 0; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

/* What a page says of its own texts is not for ours. */
.frame {
  display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.5rem; min-height: 24rem; align-content: start;
  color: var(--ink); text-align: start; text-transform: none; text-indent: 0; letter-spacing: normal; word-spacing: normal; word-break: normal; white-space: normal; cursor: auto;
}

/* Adding photos: large while there is nothing else, a small bar once there is. */
.drop { position: relative; display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; align-content: start; min-width: 0; }
.hole { display: grid; justify-items: center; align-content: center; gap: 1rem; padding: 1.25rem; border: 2px dashed color-mix(in srgb, var(--accent) 40%, var(--line)); border-radius: calc(var(--radius) * 1.4); background: var(--paper); text-align: center; }
.mark { display: grid; place-items: center; width: 4rem; height: 4rem; border-radius: 50%; background: var(--accent-soft); color: var(--accent); }
.mark .icon { width: 1.75rem; height: 1.75rem; }
.invitation p, .limits, .sees { color: var(--soft); font-size: .875rem; }
.ways { display: flex; flex-wrap: wrap; justify-content: center; gap: .75rem; }
.take, .invitation.by-hand { display: none; }
@media (pointer: coarse) {
  .take { display: inline-flex; }
  .invitation { display: none; }
  .invitation.by-hand { display: block; }
}
.limits { max-width: 26rem; text-wrap: balance; }
.more { display: none; color: var(--soft); font-size: .875rem; }
.more summary { display: flex; align-items: center; gap: .375rem; min-height: 2.75rem; cursor: pointer; list-style: none; }
.more summary::after { content: ""; width: .5rem; height: .5rem; border: solid currentColor; border-width: 0 1.5px 1.5px 0; rotate: 45deg; translate: 0 -2px; }
.more[open] summary::after { rotate: 225deg; translate: 0 2px; }
.is-over .hole { border-color: var(--accent); background: var(--accent-soft); }
legend { padding: 0; margin-bottom: .5rem; color: var(--soft); font-size: .875rem; }
.options { display: flex; flex-wrap: wrap; gap: .5rem; }
.option { position: relative; display: inline-grid; color: var(--ink); font-size: 1rem; }
.option input { position: absolute; inset: 0; margin: 0; opacity: 0; cursor: pointer; }
.option span { display: grid; place-items: center; min-height: 2.75rem; padding: 0 1rem; border: 1px solid var(--line); border-radius: 1.375rem; background: var(--paper); }
.option:hover span { border-color: var(--accent); }
.option input:checked + span { border-color: var(--accent); background: var(--accent-soft); color: var(--accent); font-weight: 600; }
.option input:focus-visible + span { outline: 3px solid var(--accent); outline-offset: 2px; }

[data-view=empty] .drop { width: 100%; max-width: 48rem; margin-inline: auto; gap: 1.25rem; justify-items: center; text-align: center; }
[data-view=empty] .hole { width: 100%; min-height: 22rem; padding: 2.5rem 1.25rem; }
[data-view=empty] .invitation h2 { font-size: 1.75rem; }
[data-view=empty] .options { justify-content: center; }
[data-view=empty] .sees { max-width: 36rem; text-wrap: pretty; }
[data-view=empty] .photos { display: none; }
[data-view=full] .skeleton { display: none; }
.frame:not([data-view=empty]) :is(.mark, .limits) { display: none; }
.frame:not([data-view=empty]) .invitation h2 { font-size: 1rem; }
:is([data-view=full], [data-view=loading]) .hole { padding: 1rem; }

/* What is read from the service moves nothing when it comes. */
.choice:empty { height: 4.8125rem; }
.frame:not([data-view=empty]) .choice:empty { height: 3.25rem; }
.limits:empty, .sees:empty { min-height: 3lh; }

.photos { display: grid; grid-template-columns: minmax(0, 1fr); align-content: start; gap: .75rem; min-width: 0; }
.summary { display: grid; grid-template-columns: 1fr auto; align-items: baseline; gap: 0 1rem; }
.counts { grid-row: 2; grid-column: 1 / -1; min-height: 1.3125rem; color: var(--soft); font-size: .875rem; font-variant-numeric: tabular-nums; }
.status { display: inline-flex; align-items: center; gap: .5rem; color: var(--soft); font-size: .875rem; }
.status i { width: .5rem; height: .5rem; border-radius: 50%; background: var(--soft); }
.status[data-is=connected] i { background: var(--good); }
.status[data-is=offline] i, .status[data-is=lost] i { background: var(--warn); }
.status[data-is=offline], .status[data-is=lost] { color: var(--warn); font-weight: 600; }
.list:focus { outline: none; }
.list, .skeleton { display: grid; grid-template-columns: minmax(0, 1fr); }
.end { height: 1px; }

/* A photo. Its least height fits each of its states, so that a result moves nothing. */
.photo {
  position: relative; display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); grid-template-rows: 1fr auto; gap: 0 .875rem;
  min-height: 11.75rem; margin-bottom: .75rem; padding: .75rem; overflow: hidden; border: 1px solid var(--line); border-radius: var(--radius); background: var(--paper);
}
.picture { position: relative; display: grid; place-items: center; width: 5.5rem; height: 5.5rem; min-height: 0; padding: 0; overflow: hidden; border: 0; border-radius: calc(var(--radius) * .7); background: var(--hollow); color: var(--soft); }
.picture img { width: 100%; height: 100%; object-fit: cover; }
.placeholder { display: grid; }
.body { display: grid; grid-template-columns: minmax(0, 1fr); align-content: start; gap: .25rem; min-width: 0; }
.head { display: flex; align-items: start; justify-content: space-between; gap: .5rem; }
.title { min-width: 0; overflow: hidden; font-weight: 600; line-height: 1.5rem; text-overflow: ellipsis; white-space: nowrap; }
.title.is-subtitle { color: var(--soft); font-size: .8125rem; font-weight: 400; }
.badge { flex: none; padding: 0 .625rem; border-radius: 1rem; background: var(--hollow); color: var(--soft); font-size: .8125rem; font-weight: 600; line-height: 1.5rem; font-variant-numeric: tabular-nums; }
.badge.good { background: var(--good-soft); color: var(--good); }
.badge.warn { background: var(--warn-soft); color: var(--warn); }
.badge.bad { background: var(--bad-soft); color: var(--bad); }
.badge.busy { background: var(--accent-soft); color: var(--accent); }
.values { display: grid; grid-template-columns: minmax(0, 1fr); }
.values div { display: flex; align-items: baseline; gap: .5rem; min-width: 0; }
.values .brand .value { font-weight: 650; }
.values dt { flex: none; width: 4.5rem; color: var(--soft); font-size: .8125rem; }
.values dd { display: flex; align-items: baseline; gap: .5rem; min-width: 0; }
.value { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sure { flex: none; color: var(--soft); font-size: .8125rem; }
.state-text { display: -webkit-box; overflow: hidden; color: var(--soft); font-size: .875rem; line-height: 1.4; overflow-wrap: anywhere; -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
.photo:not(:has(.values div)) .state-text { -webkit-line-clamp: 4; }
[data-kind=bad] > .body > .state-text { color: var(--bad); }
[data-kind=warn] > .body > .state-text { color: var(--warn); }
.buttons { grid-column: 1 / -1; display: flex; flex-wrap: wrap; justify-content: flex-end; gap: 0 .25rem; margin: .25rem -.375rem -.375rem; }
.buttons button { padding-inline: .75rem; font-size: .875rem; }
.bar { position: absolute; inset: auto 0 0; height: 3px; background: var(--accent-soft); }
.bar i { display: block; height: 100%; background: var(--accent); transform-origin: left; transition: transform .3s; }
.bar.endless i { animation: pass 1.4s ease-in-out infinite; }
@keyframes pass { from { translate: -100% } to { translate: 100% } }

.correction { display: grid; gap: .75rem; padding-top: .25rem; }
.is-edited :is(.values, .state-text), .is-edited .buttons { display: none; }
.hint { color: var(--soft); font-size: .8125rem; }
.problem { color: var(--bad); font-size: .875rem; }
.problem:empty { display: none; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; }

.skeleton .body { gap: .75rem; padding-top: .25rem; }
.skeleton i { width: 60%; height: 1rem; border-radius: .5rem; background: var(--hollow); }
.skeleton i + i { width: 85%; }
.skeleton .photo { animation: breathe 1.6s ease-in-out infinite alternate; }
@keyframes breathe { to { opacity: .55 } }

.toasts { position: fixed; inset: auto 0 max(1rem, env(safe-area-inset-bottom)); z-index: 10; display: grid; justify-items: center; gap: .5rem; padding-inline: 1rem; pointer-events: none; }
.offline { padding: .625rem 1rem; border-radius: var(--radius); background: var(--warn-soft); color: var(--warn); font-size: .9375rem; box-shadow: 0 8px 28px rgb(0 0 0 / .2); }
.toast { display: flex; align-items: center; gap: .75rem; max-width: 34rem; padding: .375rem .375rem .375rem 1rem; border-radius: var(--radius); background: light-dark(#18202b, #e7ecf3); color: light-dark(#ffffff, #18202b); box-shadow: 0 8px 28px rgb(0 0 0 / .25); overflow-wrap: anywhere; pointer-events: auto; animation: rise .2s; }
.toast span { padding-block: .375rem; }
.toast button { border-color: transparent; background: none; color: inherit; }
.toast .undo { color: light-dark(#9dc3ff, #1a5fd0); font-weight: 600; }
.toast :focus-visible { outline-color: currentColor; outline-offset: -3px; }
@keyframes rise { from { opacity: 0; translate: 0 .5rem } }

dialog { width: min(44rem, calc(100vw - 1.5rem)); max-height: calc(100dvh - 1.5rem); padding: 0; overflow: auto; border: 1px solid var(--line); border-radius: calc(var(--radius) * 1.4); background: var(--paper); color: var(--ink); }
dialog::backdrop { background: rgb(0 0 0 / .5); }
.sheet { position: relative; padding: 1.25rem; }
.close { position: absolute; inset: 1.75rem 1.75rem auto auto; z-index: 1; width: 2.75rem; padding: 0; border-radius: 50%; }
dialog .close { background: var(--paper); color: var(--ink); }
.details { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; overflow-wrap: anywhere; }
.large { position: relative; display: grid; place-items: center; height: min(24rem, 50dvh); overflow: hidden; border-radius: var(--radius); background: var(--hollow); color: var(--soft); }
.large img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.details .state-text { display: block; }
.details .head { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .75rem; }
.facts { display: grid; gap: .375rem; }
.facts div { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); }
.facts dt { color: var(--soft); }
.attempts { display: grid; gap: .75rem; margin-top: .5rem; padding-inline-start: 1rem; border-inline-start: 2px solid var(--line); list-style: none; color: var(--soft); font-size: .875rem; }
.attempts b { color: var(--ink); }
.attempts .failed { color: var(--bad); }

@container (max-width: 28em) {
  .values dt { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; white-space: nowrap; }
  .buttons button { padding-inline: .625rem; }
  .buttons [data-act=Delete] span { display: none; }
  .option span { padding-inline: .75rem; }
}
@container (max-width: 17em) {
  .photo { grid-template-columns: 3.5rem minmax(0, 1fr); gap: 0 .625rem; }
  .picture { width: 3.5rem; height: 3.5rem; }
  .values dd { flex-wrap: wrap; gap: 0 .5rem; }
}
@container (max-width: 20em) {
  .photo { min-height: 12.75rem; }
  .photo .head { flex-wrap: wrap; gap: 0 .5rem; }
  .ways .icon { display: none; }
}
@container (max-width: 39.99em) {
  .frame:not([data-view=empty]) { gap: 1rem; }
  .frame:not([data-view=empty]) :is(.invitation, .sees, legend) { display: none; }
  .frame:not([data-view=empty]) .more { display: block; }
  .frame:not([data-view=empty]) .hole { padding: 0; border: 0; background: none; }
  .frame:not([data-view=empty]) .ways { width: 100%; }
  .frame:not([data-view=empty]) .ways button { flex: 1; min-height: 3.25rem; padding-inline: .5rem; white-space: nowrap; }
  .frame:not([data-view=empty]) .drop { gap: .75rem; }
  .frame:not([data-view=empty]) .options { flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none; }
  .frame:not([data-view=empty]) .option input:focus-visible + span { outline-offset: -3px; }
}
@container (min-width: 40em) {
  .photo { grid-template-columns: 8rem minmax(0, 1fr) auto; min-height: 9.5rem; }
  .picture { width: 8rem; height: 8rem; grid-row: 1 / 3; }
  .buttons { grid-area: 2 / 3; }
  .body { grid-area: 1 / 2 / 3 / 4; }
  /* Three lines end above the buttons, and what stands below values goes beside them. */
  .photo:not(:has(.values div)) .state-text { -webkit-line-clamp: 3; }
  .photo:has(.values div) .state-text { margin-inline-end: 19rem; -webkit-line-clamp: 2; }
  .correction { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .correction > :not(label) { grid-column: 1 / -1; }
}
@container (min-width: 60em) {
  .frame:not([data-view=empty]) { grid-template-columns: 19rem minmax(0, 1fr); gap: 2rem; }
  .frame:not([data-view=empty]) .drop { position: sticky; top: 1rem; align-self: start; }
  .frame:not([data-view=empty]) .hole { min-height: 13rem; }
  .frame:not([data-view=empty]) .options { display: grid; grid-template-columns: 1fr 1fr; }
  .frame:not([data-view=empty]) .choice:empty { height: 8.0625rem; }
}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { animation: none !important; transition: none !important; }
}
`),
);
