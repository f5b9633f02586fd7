// What the page's scripts meet in a host: its globals, the events it fires, and a Python that answers the panel.
(function () {
    'use strict';

    const lists = {loaded: [], update: [], after: [], tab: []};
    window.gradioApp = () => document;
    window.onUiLoaded = (f) => lists.loaded.push(f);
    window.onUiUpdate = (f) => lists.update.push(f);
    window.onAfterUiUpdate = (f) => lists.after.push(f);
    window.onUiTabChange = (f) => lists.tab.push(f);
    window.heard = [];  // what got past the scripts, to the host's own listeners
    window.asked = [];  // what the panel's Python was asked

    let timer = 0;
    document.addEventListener('DOMContentLoaded', () => {
        new MutationObserver((records) => {
            for (const f of lists.update) f(records);
            clearTimeout(timer);
            timer = setTimeout(() => { for (const f of lists.after) f(); }, 200);
        }).observe(document, {childList: true, subtree: true});
        for (const f of lists.loaded) f();
        const gallery = document.getElementById('img2img_gallery');
        for (const name of ['click', 'keydown', 'dblclick']) gallery.addEventListener(name, () => window.heard.push(name));
        document.addEventListener('keydown', (event) => window.heard.push(event.key));
        for (const button of document.querySelectorAll('[id$=again]')) button.addEventListener('click', answer);
    });

    /** Three by two tiles of a result twice as large, for whatever picture there is. */
    function answer(event) {
        const tab = window.dinoUpscale.factsOf('img2img'), {width, height} = JSON.parse(tab);
        window.asked.push(tab);
        window.tell(event.target.id.replace('again', 'summary'), tab, {
            target: `${2 * width},${2 * height}`, tile: `${0.8 * width},${1.2 * height}`,
            tops: `0,${0.8 * height}`, lefts: `0,${0.6 * width},${1.2 * width}`,
        });
    }

    window.tell = function (id, tab, plan) {
        const line = document.createElement('div');
        line.className = 'dino-upscale-summary';
        Object.assign(line.dataset, {tab}, plan);
        line.innerHTML = '<span>What it will do.</span>'
            + '<label class="dino-upscale-switch" hidden><input type="checkbox"> Show the tiles on the picture</label>';
        document.querySelector(`#${id} .prose`).replaceChildren(line);
    };

    /** A picture of one colour, as an address. */
    window.paint = function (width, height, colour) {
        const canvas = Object.assign(document.createElement('canvas'), {width, height});
        const pen = canvas.getContext('2d');
        pen.fillStyle = colour;
        pen.fillRect(0, 0, width, height);
        return canvas.toDataURL();
    };

    /** Put a picture into img2img. */
    window.put = function (width, height) {
        const image = document.querySelector('#img2img_image img');
        image.src = window.paint(width, height, '#a33');
        image.style.display = 'block';
        return image.decode().then(() => true);
    };

    /** Fill the gallery as a finished generation does: [saved text, ...], the first picture selected. */
    window.finish = function (texts, width, height, first) {
        const source = window.paint(width, height, '#3a3');
        const strip = document.querySelector('#img2img_gallery .thumbnails');
        strip.replaceChildren(...texts.map((text, i) => {
            const item = document.createElement('button');
            item.className = 'thumbnail-item thumbnail-small' + (i ? '' : ' selected');
            item.append(Object.assign(document.createElement('img'), {src: source}));
            return item;
        }));
        const record = {infotexts: texts, index_of_first_image: first || 0};
        document.querySelector('#generation_info_img2img textarea').value = JSON.stringify(record);
        const image = document.querySelector('#img2img_gallery .detailed');
        image.src = source;
        return image.decode().then(() => true);
    };

    window.select = function (index) {
        [...document.querySelectorAll('#img2img_gallery .thumbnail-item')].forEach((item, i) => {
            item.classList.toggle('selected', i === index);
        });
        document.querySelector('#img2img_gallery .thumbnails').append(document.createComment('changed'));
    };
})();
