// The rules of the page's scripts that need no page, with nothing but Node: prints what fails, then how many passed.
const fs = require('fs');
const path = require('path');
const vm = require('vm');
const assert = require('assert').strict;

const folder = path.join(__dirname, '..', '..', 'javascript');
const window = {};
const context = vm.createContext({window, MutationObserver: class {}});
for (const name of fs.readdirSync(folder).sort().reverse()) {
    vm.runInContext(fs.readFileSync(path.join(folder, name), 'utf8'), context, {filename: name});
}
const dino = window.dinoUpscale;
const plain = (value) => JSON.parse(JSON.stringify(value));
const same = (found, wanted) => assert.deepEqual(plain(found), wanted);

const tests = {
    'a wide picture in a square box is letterboxed above and below'() {
        same(dino.fitted({width: 100, height: 100}, {width: 400, height: 200}, 'contain'),
            {left: 0, top: 25, width: 100, height: 50});
    },
    'scale-down never enlarges, contain does, fill stretches, cover crops'() {
        const box = {width: 100, height: 100}, small = {width: 20, height: 10};
        same(dino.fitted(box, small, 'scale-down'), {left: 40, top: 45, width: 20, height: 10});
        same(dino.fitted(box, small, 'contain'), {left: 0, top: 25, width: 100, height: 50});
        same(dino.fitted(box, small, 'fill'), {left: 0, top: 0, width: 100, height: 100});
        same(dino.fitted(box, small, 'cover'), {left: -50, top: 0, width: 200, height: 100});
        same(dino.fitted(box, small, 'none'), {left: 40, top: 45, width: 20, height: 10});
    },
    'a picture that is not there yet lies nowhere'() {
        assert.equal(dino.fitted({width: 100, height: 100}, {width: 0, height: 0}, 'contain'), null);
        assert.equal(dino.fitted({width: 0, height: 0}, {width: 5, height: 5}, 'contain'), null);
    },
    'what is seen of a zoomed picture is its part in the frame'() {
        const frame = {left: 10, top: 10, width: 100, height: 50};
        same(dino.clipped({left: -90, top: 0, width: 150, height: 100}, frame),
            {left: 10, top: 10, width: 50, height: 50});
        assert.equal(dino.clipped({left: 200, top: 0, width: 10, height: 10}, frame), null);
    },
    'tiles are read as width before height, and not at all from a line without them'() {
        same(dino.planOf({target: '1280,960', tile: '512,500', tops: '0,460', lefts: '0,384,768'}),
            {target: [1280, 960], tile: [512, 500], tops: [0, 460], lefts: [0, 384, 768]});
        assert.equal(dino.planOf({}), null);
        assert.equal(dino.planOf({target: '1280,x', tile: '5,5', tops: '0', lefts: '0'}), null);
        assert.equal(dino.planOf({target: '0,0', tile: '5,5', tops: '0', lefts: '0'}), null);
    },
    'edges and overlaps are where tiles begin, end and share'() {
        // Three tiles of 512 on 1280, shown at half size.
        same(dino.axis([0, 384, 768], 512, 1280, 640),
            {edges: [192, 256, 384, 448], overlaps: [[192, 256], [384, 448]], dense: false});
        same(dino.axis([0], 512, 512, 300), {edges: [], overlaps: [], dense: false});
    },
    'a tile that hangs over the padded edge ends with the picture'() {
        same(dino.axis([0, 392], 512, 900, 900), {edges: [392, 512], overlaps: [[392, 512]], dense: false});
    },
    'lines that would cover the picture are left out'() {
        const starts = Array.from({length: 300}, (_, i) => i * 8);
        assert.equal(dino.axis(starts, 16, 2408, 400).dense, true);
    },
    'results, pictures beside them and those of others are told by their saved text'() {
        const text = 'a cat, DINO picture: no\nSteps: 20, DINO upscale: 2.0, DINO Upscale version: 0.1.0, Version: 1';
        assert.equal(dino.kindOf(text.replace(', DINO picture: no', '')), 'result');
        assert.equal(dino.kindOf('Steps: 20, DINO Upscale version: 0.1.0, DINO picture: drift map'), 'extra');
        assert.equal(dino.kindOf('a cat\nSteps: 20, Sampler: Euler a'), 'other');
        assert.equal(dino.kindOf(undefined), 'other');
        assert.equal(dino.kindOf('DINO Upscale version of a cat\nSteps: 20'), 'other');
        // A prompt that quotes a key cannot pass itself off for the line of parameters.
        assert.equal(dino.kindOf(text), 'result');
        assert.equal(dino.kindOf('x, DINO Upscale version: 9\nSteps: 20, Sampler: Euler a'), 'other');
    },
    'the grid of a batch and pictures without text are no results'() {
        const record = JSON.stringify({index_of_first_image: 1, infotexts: ['grid', 'one', 'two']});
        same(dino.textsOf(record), ['', 'one', 'two']);
        same(dino.textsOf('{"infotexts": null}'), []);
        same(dino.textsOf('nonsense'), []);
        same(dino.textsOf(''), []);
    },
    'for a grid of all pictures stands the first result, for a map or a foreign picture none'() {
        const own = 'Steps: 20, DINO Upscale version: 0.1.0', map = `${own}, DINO picture: drift map`;
        assert.equal(dino.resultAt(['', own, own, map], 0), 1);
        assert.equal(dino.resultAt(['', own, own, map], 2), 2);
        assert.equal(dino.resultAt(['', own, own, map], 3), -1);
        assert.equal(dino.resultAt(['', 'Steps: 20', 'Steps: 20'], 0), -1);
        assert.equal(dino.resultAt([own, ''], 1), -1);
        assert.equal(dino.resultAt(['', own], -1), -1);
        assert.equal(dino.resultAt([], 0), -1);
    },
    'keys move the divider and stay within the picture'() {
        assert.equal(dino.afterKey(50, 'ArrowLeft', false), 49);
        assert.equal(dino.afterKey(50, 'ArrowRight', true), 60);
        assert.equal(dino.afterKey(3, 'PageDown', false), 0);
        assert.equal(dino.afterKey(99.5, 'ArrowUp', false), 100);
        assert.equal(dino.afterKey(42, 'Home', false), 0);
        assert.equal(dino.afterKey(42, 'End', false), 100);
        assert.equal(dino.afterKey(42, 'a', false), null);
    },
    'the divider follows the pointer to both edges and no further'() {
        const box = {left: 100, width: 200};
        assert.equal(dino.percentAt(150, box), 25);
        assert.equal(dino.percentAt(0, box), 0);
        assert.equal(dino.percentAt(999, box), 100);
    },
    'a picture that is moved at 100 % never leaves a gap'() {
        assert.equal(dino.covering(30, 2, 100), 0);
        assert.equal(dino.covering(-500, 2, 100), -100);
        assert.equal(dino.covering(-40, 2, 100), -40);
        assert.equal(dino.covering(-40, 1, 100), 0);
    },
    'both files leave one name behind'() {
        same(Object.keys(context).filter((name) => !['window', 'MutationObserver'].includes(name)), []);
        same(Object.keys(window), ['dinoUpscale']);
    },
};

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
    try {
        test();
    } catch (error) {
        failed += 1;
        console.log(`${name}: ${error.message}`);
    }
}
console.log(`${Object.keys(tests).length - failed} of ${Object.keys(tests).length} passed`);
process.exit(failed ? 1 : 0);
