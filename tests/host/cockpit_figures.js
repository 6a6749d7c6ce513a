// Measures in the page, from before its first script on, in milliseconds: when something and when the table was first
// painted, how long tasks took that took more than 50, and the longest time between two frames.
const figures = { painted: 0, shown: 0, tasks: [], gap: 0 };
window.figures = figures;
new PerformanceObserver(list => { figures.painted = list.getEntriesByName("first-contentful-paint")[0]?.startTime ?? figures.painted; })
    .observe({ type: "paint", buffered: true });
new PerformanceObserver(list => figures.tasks.push(...list.getEntries().map(task => task.duration)))
    .observe({ type: "longtask", buffered: true });
const looking = new MutationObserver(() => {
    if (!document.querySelector("tbody tr"))
        return;
    looking.disconnect();
    requestAnimationFrame(() => setTimeout(() => { figures.shown = performance.now(); }));
});
looking.observe(document, { childList: true, subtree: true });
let last = performance.now();
requestAnimationFrame(function frame(now) {
    figures.gap = Math.max(figures.gap, now - last);
    last = now;
    requestAnimationFrame(frame);
});
