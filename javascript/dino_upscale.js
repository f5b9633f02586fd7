// The tile grid over img2img's picture, and what the before/after slider shares with it.
//
// A plain script: hosts load it beside their own and other extensions', so all of it lives in one object of the
// window. It only shows; every number it draws was computed and checked by the extension's Python, which writes it
// into the line "what this will do" of a panel.
(function () {
    'use strict';

    const dino = window.dinoUpscale = window.dinoUpscale || {};
    const SOURCES = ['img2img_image', 'img2img_sketch', 'img2maskimg', 'inpaint_sketch', 'img_inpaint_base'];
    const PANELS = [
        {prefix: 'dino_upscale_', tab: 'img2img'},
        {prefix: 'dino_upscale_on_img2img_', tab: 'img2img'},
        {prefix: 'dino_upscale_on_txt2img_', tab: 'txt2img'},
    ];
    const STORED = 'dino-upscale-grid';
    const HEARD_MS = 600;
    const LEAST_PX = 4;  // lines nearer to each other than this would hide the picture

    // ---- Geometry: no page needed -------------------------------------------------------------------------------

    /** Where a picture lies in its element's box: {left, top, width, height}; null for a picture without size. */
    dino.fitted = function (box, natural, fit) {
        if (!(natural.width > 0 && natural.height > 0 && box.width > 0 && box.height > 0)) return null;
        const across = box.width / natural.width, down = box.height / natural.height;
        if (fit === 'fill' || !fit) return {left: 0, top: 0, width: box.width, height: box.height};
        let scale = fit === 'cover' ? Math.max(across, down) : Math.min(across, down);
        if (fit === 'none') scale = 1;
        if (fit === 'scale-down') scale = Math.min(scale, 1);
        const width = natural.width * scale, height = natural.height * scale;
        return {left: (box.width - width) / 2, top: (box.height - height) / 2, width, height};
    };

    /** The part of `rect` that lies inside `frame`; null where they do not meet. */
    dino.clipped = function (rect, frame) {
        const left = Math.max(rect.left, frame.left), top = Math.max(rect.top, frame.top);
        const right = Math.min(rect.left + rect.width, frame.left + frame.width);
        const bottom = Math.min(rect.top + rect.height, frame.top + frame.height);
        return right > left && bottom > top ? {left, top, width: right - left, height: bottom - top} : null;
    };

    /** The tiles out of a line's data attributes; null where there are none. */
    dino.planOf = function (data) {
        const list = (text) => (text ? text.split(',').map(Number) : []);
        const [target, tile] = [list(data.target), list(data.tile)];
        const [tops, lefts] = [list(data.tops), list(data.lefts)];
        const all = [...target, ...tile, ...tops, ...lefts];
        if (target.length !== 2 || tile.length !== 2 || !tops.length || !lefts.length) return null;
        return all.every(Number.isFinite) && Math.min(...target, ...tile) > 0 ? {target, tile, tops, lefts} : null;
    };

    /**
     * Tiles along one axis of a picture shown `shown` pixels long: inner `edges`, `overlaps` as [from, to], all in
     * pixels of what is shown; `dense` where lines would cover it.
     */
    dino.axis = function (starts, tile, target, shown) {
        const scale = shown / target;
        const spans = starts.map((start) => [start * scale, Math.min(start + tile, target) * scale]);
        const overlaps = spans.slice(1).map((span, i) => [span[0], spans[i][1]]).filter(([from, to]) => to > from);
        const inner = (at) => at > 0.5 && at < shown - 0.5;
        const edges = [...new Set(spans.flat())].filter(inner).sort((a, b) => a - b);
        return {edges, overlaps, dense: edges.length * LEAST_PX > shown};
    };

    // ---- What the page shows ------------------------------------------------------------------------------------

    const app = () => (typeof gradioApp === 'function' ? gradioApp() : document);
    const byId = (id) => document.getElementById(id) || app().querySelector(`#${id}`);
    const shown = (element) => Boolean(element && element.getClientRects().length);

    /** img2img's picture that is on screen: {element, frame, width, height}; null where there is none. */
    dino.source = function () {
        for (const root of SOURCES.map(byId)) {
            if (!shown(root)) continue;
            // Gradio 3 shows what is painted on as a canvas.
            const pictures = [...root.querySelectorAll('img, canvas[key=drawing]')];
            const element = pictures.find((each) => sizeOf(each).width > 1 && shown(each));
            const frame = element?.closest('.forge-image-container') || root;
            if (element) return {element, frame, ...sizeOf(element)};
        }
        return null;
    };

    const sizeOf = (picture) => ({
        width: picture.naturalWidth ?? picture.width, height: picture.naturalHeight ?? picture.height,
    });

    /** The address of that picture, to show it elsewhere; null where there is none. */
    dino.sourceAddress = function () {
        const element = dino.source()?.element;
        return element ? element.src || element.toDataURL() : null;
    };

    /** Where a picture lies in the window. */
    dino.rectOf = function (element) {
        const box = element.getBoundingClientRect();
        const inside = dino.fitted(box, sizeOf(element), getComputedStyle(element).objectFit);
        return inside && {...inside, left: box.left + inside.left, top: box.top + inside.top};
    };

    const numberIn = (id) => Number(byId(id)?.querySelector('input[type=number]')?.value) || 0;

    /** The size txt2img will hand over: the tab's own, or that of its hires fix. */
    function madeByTxt2img() {
        const fixes = byId('txt2img_hr-checkbox')?.querySelector('input')?.checked;
        const sizes = fixes ? (byId('txtimg_hr_finalres')?.textContent || '').match(/\d+x\d+/g) : null;
        if (!sizes) return {width: numberIn('txt2img_width'), height: numberIn('txt2img_height')};
        const [width, height] = sizes[sizes.length - 1].split('x').map(Number);
        return {width, height};
    }

    /** What Python has to know of a tab, as text. */
    dino.factsOf = function (tab) {
        const size = tab === 'img2img' ? dino.source() : madeByTxt2img();
        const sampler = byId(`${tab}_sampling`)?.querySelector('input')?.value || '';
        const {width, height} = size || {width: 0, height: 0};
        const batch = tab === 'img2img' && shown(byId('img2img_batch_tab'));
        return JSON.stringify({width, height, batch, steps: numberIn(`${tab}_steps`), sampler, checkpoint});
    };

    let checkpoint = null, chosen = null;

    /** A checkpoint that was chosen is a fact once the host has had the time to hear of it. */
    function followCheckpoint() {
        // Forge's list has no name of its own, only a class that its list of VAEs may share.
        const list = byId('setting_sd_model_checkpoint') || byId('quicksettings')?.querySelector('.model_selection');
        const name = list?.querySelector('input')?.value || '';
        if (name === chosen) return;
        chosen = name;
        const settle = () => { checkpoint = chosen; dino.soon(); };
        if (checkpoint === null) checkpoint = name;
        else setTimeout(settle, HEARD_MS);
    }

    /** For the panels' events: their arguments with the tab's facts in front. */
    dino.withTab = (args, tab) => [dino.factsOf(tab), ...args.slice(1)];

    const lineOf = (panel) => byId(`${panel.prefix}summary`)?.querySelector('.dino-upscale-summary');

    /** Whether a panel will act: the dropdown's is on screen only while it is chosen, the others have a switch. */
    function acts(panel) {
        const box = byId(`${panel.prefix}enabled-checkbox`)?.querySelector('input');
        return box ? box.checked : shown(lineOf(panel));
    }

    /** The panel that will act on img2img's picture; undefined where none does. */
    dino.actingPanel = () => PANELS.find((panel) => panel.tab === 'img2img' && acts(panel));

    // ---- The line follows what its own controls do not notice -----------------------------------------------------

    const asked = {};

    function askAgain() {
        for (const panel of PANELS.filter(acts)) {
            const line = lineOf(panel), facts = dino.factsOf(panel.tab);
            if (!line || line.dataset.tab === facts || asked[panel.prefix] === facts) continue;
            asked[panel.prefix] = facts;
            byId(`${panel.prefix}again`)?.click();
        }
    }

    // ---- The grid -----------------------------------------------------------------------------------------------

    let canvas = null, drawn = '', watched = null, resized = null;
    let wanted = remembered();

    function remembered() {
        try {
            return localStorage.getItem(STORED) !== 'off';
        } catch (error) {
            return true;  // storage is shut off
        }
    }

    function want(value) {
        wanted = value;
        try {
            localStorage.setItem(STORED, value ? 'on' : 'off');
        } catch (error) {
            // The choice holds until the page is left.
        }
    }

    /** Show the switches: Python writes them hidden, and anew with every line. */
    function reveal() {
        for (const panel of PANELS.filter((each) => each.tab === 'img2img')) {
            const label = lineOf(panel)?.querySelector('.dino-upscale-switch');
            if (!label) continue;
            const plan = Boolean(lineOf(panel).dataset.tops);
            if (label.hidden === plan) label.hidden = !plan;
            const box = label.querySelector('input');
            if (box.checked !== wanted) box.checked = wanted;
        }
    }

    function hide() {
        canvas?.remove();
        canvas = null;
        drawn = '';
    }

    function draw() {
        const panel = wanted && dino.actingPanel(), source = panel && dino.source();
        const plan = source && dino.planOf(lineOf(panel)?.dataset || {});
        watch(source);
        const whole = plan && within(source.frame, dino.rectOf(source.element));
        const {clientWidth, clientHeight, clientLeft, clientTop} = source?.frame || {};
        const view = {left: clientLeft, top: clientTop, width: clientWidth, height: clientHeight};
        const seen = whole && dino.clipped(whole, view);
        if (!seen) return hide();
        if (!canvas || canvas.parentElement !== source.frame) {
            hide();
            canvas = document.createElement('canvas');
            canvas.className = 'dino-upscale-grid';
            canvas.setAttribute('aria-hidden', 'true');
            source.frame.append(canvas);
        }
        const place = {
            left: seen.left - clientLeft + source.frame.scrollLeft, top: seen.top - clientTop + source.frame.scrollTop,
        };
        const key = JSON.stringify([plan, place, seen, whole, window.devicePixelRatio]);
        if (key === drawn) return undefined;
        drawn = key;
        return paint(plan, whole, seen, place);
    }

    /** A rectangle of the window in a frame's own pixels, from its outer corner: other scripts zoom whole frames. */
    function within(frame, rect) {
        if (!rect) return null;
        const outer = frame.getBoundingClientRect(), zoom = outer.width / frame.offsetWidth || 1;
        return {
            left: (rect.left - outer.left) / zoom, top: (rect.top - outer.top) / zoom,
            width: rect.width / zoom, height: rect.height / zoom,
        };
    }

    function paint(plan, whole, seen, place) {
        const dots = window.devicePixelRatio || 1;
        Object.assign(canvas.style, {
            left: `${place.left}px`, top: `${place.top}px`, width: `${seen.width}px`, height: `${seen.height}px`,
        });
        canvas.width = Math.round(seen.width * dots);
        canvas.height = Math.round(seen.height * dots);
        const pen = canvas.getContext('2d');
        pen.setTransform(dots, 0, 0, dots, (whole.left - seen.left) * dots, (whole.top - seen.top) * dots);
        const across = dino.axis(plan.lefts, plan.tile[0], plan.target[0], whole.width);
        const down = dino.axis(plan.tops, plan.tile[1], plan.target[1], whole.height);
        pen.fillStyle = 'rgba(30, 136, 229, 0.18)';
        for (const [from, to] of across.overlaps) pen.fillRect(from, 0, to - from, whole.height);
        for (const [from, to] of down.overlaps) pen.fillRect(0, from, whole.width, to - from);
        const lines = new Path2D();
        lines.rect(0.5, 0.5, whole.width - 1, whole.height - 1);
        for (const x of across.dense ? [] : across.edges) {
            lines.moveTo(x, 0);
            lines.lineTo(x, whole.height);
        }
        for (const y of down.dense ? [] : down.edges) {
            lines.moveTo(0, y);
            lines.lineTo(whole.width, y);
        }
        // Light upon dark, to be seen on any picture.
        for (const [width, colour] of [[3, 'rgba(0, 0, 0, 0.45)'], [1, 'rgba(255, 255, 255, 0.95)']]) {
            pen.lineWidth = width;
            pen.strokeStyle = colour;
            pen.stroke(lines);
        }
    }

    /** Be told when the picture is moved, zoomed or replaced. */
    function watch(source) {
        const element = source ? source.element : null;
        if (element === watched) return;
        watched = element;
        resized?.disconnect();
        moved.disconnect();
        if (!element) return;
        moved.observe(element, {attributes: true, attributeFilter: ['style', 'src', 'class']});
        resized = new ResizeObserver(dino.soon);
        resized.observe(element);
        resized.observe(source.frame);
    }

    // ---- When to look -------------------------------------------------------------------------------------------

    const lookers = dino.lookers = dino.lookers || [];
    let pending = 0;

    /** Look at the page once more before it is next painted. */
    dino.soon = function () {
        pending = pending || requestAnimationFrame(() => {
            pending = 0;
            for (const look of lookers) look();
        });
    };

    const moved = new MutationObserver(dino.soon);
    lookers.push(reveal, followCheckpoint, askAgain, draw);

    function start() {
        for (const name of ['input', 'change', 'click', 'load']) document.addEventListener(name, dino.soon, true);
        document.addEventListener('change', (event) => {
            if (!event.target.closest?.('.dino-upscale-switch')) return;
            want(event.target.checked);
            event.stopPropagation();
        }, true);
        window.addEventListener('resize', dino.soon);
        dino.soon();
    }

    if (typeof onUiLoaded === 'function') {
        onUiLoaded(start);
        onUiUpdate(reveal);
        onAfterUiUpdate(dino.soon);
        onUiTabChange(dino.soon);
    }
})();
