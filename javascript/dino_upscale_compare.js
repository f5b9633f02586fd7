// Before and after: the source, enlarged by the browser to the result's size, against a result in img2img's gallery.
//
// Needs dino_upscale.js, in whichever order hosts load the two.
(function () {
    'use strict';

    const dino = window.dinoUpscale = window.dinoUpscale || {};
    const BUTTON = 'dino_upscale_compare';
    const STEP = 1, LEAP = 10;  // percent a key moves the divider
    const GRIP_PX = 24;  // a pointer that comes down this near to the divider takes hold of it

    // ---- Rules: no page needed ----------------------------------------------------------------------------------

    /** What a picture's saved text says it is: "result", "extra" (a map or crops beside one) or "other". */
    dino.kindOf = function (text) {
        // The last line holds the parameters; what stands above is the user's prompt.
        const keys = `, ${(text || '').trim().split('\n').pop()}`;
        if (!/,\s*DINO Upscale version: /.test(keys)) return 'other';
        return /,\s*DINO picture: /.test(keys) ? 'extra' : 'result';
    };

    /** Saved text of each picture of a gallery, from the host's record of a generation. */
    dino.textsOf = function (record) {
        try {
            const found = JSON.parse(record);
            // A grid of all pictures comes first and has a text as well.
            const first = found.index_of_first_image || 0;
            return (found.infotexts || []).map((text, i) => (i < first ? '' : text));
        } catch (error) {
            return [];
        }
    };

    /** Which picture of a gallery to compare where `index` is chosen: for a grid of all the first; -1 for none. */
    dino.resultAt = function (texts, index) {
        const result = (text) => dino.kindOf(text) === 'result';
        if (index >= 0 && texts[index] === '' && index < texts.findIndex(Boolean)) index = texts.findIndex(result);
        return result(texts[index]) ? index : -1;
    };

    /** The divider after a key, in percent; null for a key that does not move it. */
    dino.afterKey = function (percent, key, leap) {
        const step = leap ? LEAP : STEP;
        const to = {
            ArrowLeft: percent - step, ArrowDown: percent - step, ArrowRight: percent + step, ArrowUp: percent + step,
            PageDown: percent - LEAP, PageUp: percent + LEAP, Home: 0, End: 100,
        }[key];
        return to === undefined ? null : Math.min(100, Math.max(0, to));
    };

    /** The divider under a pointer, in percent of a box. */
    dino.percentAt = (x, box) => Math.min(100, Math.max(0, 100 * (x - box.left) / box.width));

    /** `offset` of a picture `scale` times as large as its box, kept so that it covers the box. */
    dino.covering = (offset, scale, length) => Math.min(0, Math.max(length * (1 - scale), offset));

    // ---- What the page shows ------------------------------------------------------------------------------------

    const byId = (id) => document.getElementById(id);
    let record = null, texts = [], before = null, pending = null;

    function preview() {
        const images = byId('img2img_gallery')?.querySelectorAll('.preview img') || [];
        return [...images].find((i) => !i.closest('.thumbnails, .dino-upscale-compare') && i.naturalWidth > 1
            && i.getClientRects().length) || null;
    }

    function thumbnails() {
        return [...(byId('img2img_gallery')?.querySelectorAll('.thumbnails .thumbnail-item') || [])];
    }

    function selectedIndex() {
        const all = thumbnails();
        return all.length === 1 ? 0 : all.findIndex((each) => each.classList.contains('selected'));
    }

    /** Keep the source that the pictures in the gallery were made from: by now the tab may hold another. */
    function follow() {
        const text = byId('generation_info_img2img')?.querySelector('textarea')?.value || '';
        if (text === record) return;
        record = text;
        texts = dino.textsOf(text);
        before = pending || dino.sourceAddress();
        pending = null;
    }

    /** What can be compared: the gallery's large picture as `place`, the `result` upon it; null where nothing can. */
    function comparable() {
        const place = preview(), chosen = selectedIndex(), index = dino.resultAt(texts, chosen);
        if (!place || !before || index < 0) return null;
        const result = index === chosen ? place : thumbnails()[index]?.querySelector('img');
        return result && result.naturalWidth > 1 ? {place, result} : null;
    }

    // ---- The button ---------------------------------------------------------------------------------------------

    function button() {
        const row = byId('img2img_send_to_extras');
        let made = byId(BUTTON);
        if (made || !row) return made;
        made = document.createElement('button');
        Object.assign(made, {id: BUTTON, type: 'button', className: row.className, textContent: '◐', hidden: true});
        made.title = 'Compare with the source: a divider to drag, or to move with the arrow keys.';
        made.setAttribute('aria-label', 'Compare with the source');
        made.setAttribute('aria-pressed', 'false');
        made.addEventListener('click', (event) => {
            event.stopPropagation();
            if (view) close();
            else if (comparable()) open(comparable());
        });
        row.after(made);
        return made;
    }

    // ---- The view -----------------------------------------------------------------------------------------------

    let view = null;

    function element(kind, name, parent, properties) {
        const made = Object.assign(document.createElement(kind), properties);
        made.className = `dino-upscale-${name}`;
        parent.append(made);
        return made;
    }

    function open(found) {
        const root = element('div', 'compare', byId('img2img_gallery'), {});
        root.setAttribute('role', 'group');
        root.setAttribute('aria-label', 'Source and result');
        // In panes of their own: hosts make any picture right below the gallery open their full view.
        const after = element('img', 'after', element('div', 'pane', root, {}), {alt: 'Result', draggable: false});
        const pane = element('div', 'pane', root, {});
        const source = element('img', 'before', pane, {alt: 'Source', draggable: false});
        element('span', 'tag dino-upscale-tag-before', root, {textContent: 'Source'});
        element('span', 'tag dino-upscale-tag-after', root, {textContent: 'Result'});
        const handle = element('div', 'handle', root, {tabIndex: 0});
        handle.setAttribute('role', 'slider');
        handle.setAttribute('aria-label', 'Divider between source and result');
        handle.setAttribute('aria-orientation', 'horizontal');
        handle.setAttribute('aria-valuemin', '0');
        handle.setAttribute('aria-valuemax', '100');
        const zoom = element('button', 'zoom', root, {type: 'button', textContent: '1:1'});
        zoom.title = 'Show at 100 % (or double-click); drag to move.';
        zoom.setAttribute('aria-label', 'Show at 100 percent');
        view = {root, after, pane, source, handle, zoom, image: null, percent: 50, scale: 1, left: 0, top: 0};
        listen(view);
        show(found);
        handle.focus({preventScroll: true});
    }

    function close() {
        const within = view.root.contains(document.activeElement);
        view.root.remove();
        view = null;
        button()?.setAttribute('aria-pressed', 'false');
        if (within) button()?.focus({preventScroll: true});
    }

    /** Compare this picture of the gallery. */
    function show(found) {
        const {src} = found.result;
        if (view.image !== src) {
            Object.assign(view, {image: src, scale: 1, left: 0, top: 0});
            view.after.src = src;
            view.source.src = before;
        }
        place(found);
        button()?.setAttribute('aria-pressed', 'true');
    }

    function place(found) {
        const home = view.root.parentElement, frame = home.getBoundingClientRect(), image = found.result;
        const rect = image === found.place ? dino.rectOf(image) : within(found.place, image);
        if (!rect) return;
        Object.assign(view.root.style, {
            left: `${rect.left - frame.left - home.clientLeft + home.scrollLeft}px`,
            top: `${rect.top - frame.top - home.clientTop + home.scrollTop}px`,
            width: `${rect.width}px`, height: `${rect.height}px`,
        });
        view.width = rect.width;
        view.height = rect.height;
        view.full = Math.max(1, image.naturalWidth / rect.width / (window.devicePixelRatio || 1));
        if (view.scale > 1) view.scale = view.full;
        settle();
    }

    /** Where a picture lies that is shown as large as the element `place`, whatever that shows itself. */
    function within(place, {naturalWidth: width, naturalHeight: height}) {
        const box = place.getBoundingClientRect(), inside = dino.fitted(box, {width, height}, 'contain');
        return inside && {...inside, left: box.left + inside.left, top: box.top + inside.top};
    }

    /** Put divider and pictures where the view says. */
    function settle() {
        const {percent, scale} = view;
        view.left = dino.covering(view.left, scale, view.width);
        view.top = dino.covering(view.top, scale, view.height);
        view.pane.style.right = `${100 - percent}%`;
        view.handle.style.left = `${percent}%`;
        for (const picture of [view.after, view.source]) {
            Object.assign(picture.style, {
                left: `${view.left}px`, top: `${view.top}px`,
                width: `${view.width * scale}px`, height: `${view.height * scale}px`,
            });
        }
        view.root.classList.toggle('dino-upscale-zoomed', scale > 1);
        view.zoom.hidden = view.full <= 1;
        view.zoom.setAttribute('aria-pressed', String(scale > 1));
        view.handle.setAttribute('aria-valuenow', String(Math.round(percent)));
        view.handle.setAttribute('aria-valuetext', `${Math.round(percent)} % source`);
    }

    /** Between the whole picture and 100 %, with the point (x, y) of the window kept where it is. */
    function toggleZoom(x, y) {
        const box = view.root.getBoundingClientRect();
        const scale = view.scale > 1 ? 1 : view.full;
        view.left = (x - box.left) - (x - box.left - view.left) * scale / view.scale;
        view.top = (y - box.top) - (y - box.top - view.top) * scale / view.scale;
        view.scale = scale;
        settle();
    }

    function listen(own) {
        let held = null;
        const {root, handle, zoom} = own;
        root.addEventListener('pointerdown', (event) => {
            if (event.button !== 0 || event.target === zoom) return;
            const box = root.getBoundingClientRect();
            const near = Math.abs(event.clientX - box.left - box.width * own.percent / 100) <= GRIP_PX;
            held = own.scale > 1 && !near ? {x: event.clientX, y: event.clientY, left: own.left, top: own.top} : 'divider';
            root.setPointerCapture(event.pointerId);
            handle.focus({preventScroll: true});
            event.preventDefault();
            move(event);
        });
        const move = (event) => {
            if (!held) return;
            if (held === 'divider') {
                own.percent = dino.percentAt(event.clientX, root.getBoundingClientRect());
            } else {
                own.left = held.left + event.clientX - held.x;
                own.top = held.top + event.clientY - held.y;
            }
            settle();
        };
        root.addEventListener('pointermove', move);
        for (const name of ['pointerup', 'pointercancel']) root.addEventListener(name, () => { held = null; });
        root.addEventListener('dblclick', (event) => toggleZoom(event.clientX, event.clientY));
        zoom.addEventListener('click', (event) => {
            const box = root.getBoundingClientRect();
            toggleZoom(box.left + box.width / 2, box.top + box.height / 2);
            // After a click arrow keys go on moving the divider; who pressed a key stays on the button.
            if (event.detail) handle.focus({preventScroll: true});
        });
        root.addEventListener('keydown', (event) => {
            const to = event.target === handle ? dino.afterKey(own.percent, event.key, event.shiftKey) : null;
            if (event.key === 'Escape') close();
            else if (to === null) return;
            else {
                own.percent = to;
                settle();
            }
            event.preventDefault();
            event.stopPropagation();
        });
        // The gallery under it would open its full view, or go to the next picture.
        for (const name of ['click', 'dblclick', 'mousedown', 'touchstart', 'touchend']) {
            root.addEventListener(name, (event) => event.stopPropagation(), {passive: true});
        }
    }

    function look() {
        follow();
        const found = comparable(), made = button();
        if (made && made.hidden !== !found) made.hidden = !found;
        if (view && (!found || !view.root.isConnected)) close();
        else if (view) show(found);
    }

    /** The source as it is when a generation starts. */
    function starting(event) {
        if (!event.target.closest?.('#img2img_generate')) return;
        pending = dino.sourceAddress();
        if (view) close();
    }

    (dino.lookers = dino.lookers || []).push(look);
    if (typeof onUiLoaded === 'function') onUiLoaded(() => document.addEventListener('click', starting, true));
})();
